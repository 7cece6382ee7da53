#!/bin/bash
# One training run on a Slurm cluster: Ray on every node of the allocation, the driver on the first node.
#     python -m cluster.deploy.render slurm.sh nodes=4 partition=gpu > run.sh && sbatch --export=NONE run.sh
# Put keys (WANDB_API_KEY, AWS_...) into $$HOME/.config/lowerbound/secrets.sh, mode 600, as lines `export NAME=value`:
# Slurm records this file and sbatch's environment.
#SBATCH --job-name=${name}
#SBATCH --partition=${partition}
#SBATCH --nodes=${nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=${cpus}
#SBATCH --gpus-per-node=${gpus}
#SBATCH --time=${time}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# USR1 to this script alone, `grace` seconds before the time limit.
#SBATCH --signal=B:USR1@${grace}

set -u
cd "$${LOWERBOUND:-$$SLURM_SUBMIT_DIR}" || exit 1   # the repository, on a shared disk
PATH="$$PWD/.venv/bin:$$PATH"
secrets="$$HOME/.config/lowerbound/secrets.sh"
[ ! -r "$$secrets" ] || . "$$secrets"

# A cluster for this job alone, with its own token, sockets and ports: others may use the same machines.
private="$$PWD/.slurm/$$SLURM_JOB_ID"
mkdir -p -m 700 "$$private"
[ -s "$$private/token" ] || (umask 077; python -c 'import secrets; print(secrets.token_hex(32))' > "$$private/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$$private/token" RAY_worker_niceness=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 PYTHONPATH="$$PWD" PYTHONUNBUFFERED=1
export GLOO_SOCKET_IFNAME="${interface}" NCCL_SOCKET_IFNAME="${interface}"
export RANKS=$$((SLURM_NNODES * (${gpus} > 0 ? ${gpus} : 1)))
port=$$((20000 + SLURM_JOB_ID % 10000))
head=$$(srun --export=ALL --nodes=1 --ntasks=1 --overlap hostname -I | awk '{print $$1}')
[ -n "$$head" ] || { echo "srun did not print the address of the first node"; exit 1; }
stop="$$private/stop"
rm -f "$$stop"

# USR1 comes before the time limit, TERM at scancel and pre-emption. The run commits in both cases; after USR1, or if
# Slurm requeues it, the job is requeued and continues from the newest commit.
requeue=no
notice() { echo "notice: $$1"; [ "$$1" = USR1 ] && requeue=yes; touch "$$stop"; }
trap 'notice USR1' USR1
trap 'notice TERM' TERM

# A watcher on the driver's machine forwards the notice. Slurm's own TERM would stop Ray before the driver: ignored.
srun --kill-on-bad-exit=0 --export=ALL \
    bash -c 'trap "" TERM; "$$@"; status=$$?; rm -rf "/tmp/ray-$$SLURM_JOB_ID"; exit $$status' - ray symmetric-run --address "$$head:$$port" --min-nodes "$$SLURM_NNODES" \
    --num-cpus=${cpus} --num-gpus=${gpus} --include-dashboard=true --dashboard-host=127.0.0.1 \
    --temp-dir="/tmp/ray-$$SLURM_JOB_ID" --disable-usage-stats -- \
    bash -c 'export RAY_ADDRESS='"$$head:$$port"'
        python -m jobs.train ${config} run=${run} data.shards=${shards}/train \
            data.validation=${shards}/validation ray.workers=$$RANKS & driver=$$!
        while kill -0 $$driver 2>/dev/null; do [ -e '"$$stop"' ] && kill -TERM $$driver && break; sleep 1; done
        wait $$driver' &
step=$$! status=1
while kill -0 $$step 2>/dev/null; do wait $$step; status=$$?; done
rm -rf "$$private"

# Pre-emption signals the steps, not this script: the run has committed and exited, and would count as completed.
scontrol show job "$$SLURM_JOB_ID" | grep -q "PreemptTime=[0-9]" && requeue=yes
[ $$requeue = no ] || { echo "requeueing"; scontrol requeue "$$SLURM_JOB_ID"; }
exit $$status
