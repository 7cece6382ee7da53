"""The real parts that tests run against: S3 and W&B servers, a proxy that fails on purpose, jobs in processes."""
