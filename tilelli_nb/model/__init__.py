"""The network, one file a pathway: tensors in, tensors out."""
