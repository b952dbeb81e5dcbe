"""The embedding store: cuckoo-hash tables trained by pushes of log ranges. No Beam, no TensorFlow."""
