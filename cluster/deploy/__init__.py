"""Image, manifests and launchers of clusters."""
