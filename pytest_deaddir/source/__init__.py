"""Where a subject comes from: a spec's text → tensors on disk or on a hub, a module, its inputs."""
