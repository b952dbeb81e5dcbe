"""The train pipeline: the examples log in, store updates and snapshots out."""
