"""The run folder (docs/run-folder.md): who may write it, what is written, and how it is read.

Identity:  lineage (attempts, which commits count), commit (one commit's folder and manifest), provenance
Writing:   checkpointer (what the loop calls), staging (copy to host memory), writing (in the background), retention
Format:    tensor_files (safetensors, layout, checksums)
Reading:   reading (a commit's state), read_plan (which bytes a rank needs)
Beside it: journal (metrics), snapshots and profiles (post-hoc averages), export and weights (models), warm_start
"""
