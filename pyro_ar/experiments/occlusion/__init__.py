"""`pyro-ar occlusion`."""
