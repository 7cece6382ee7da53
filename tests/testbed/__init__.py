"""The real parts that tests run against: an S3 server, a W&B server, a proxy that fails on purpose, jobs in processes."""
