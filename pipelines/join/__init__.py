"""The join pipeline: two logs in, the examples log out."""
