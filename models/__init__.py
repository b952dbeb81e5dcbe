"""Feature encoding and models (TensorFlow, no Beam): used by transforms and by serving."""
