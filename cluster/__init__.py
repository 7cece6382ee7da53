"""What a run stands on: storage, images and manifests of clusters, a local multi-host bed."""
