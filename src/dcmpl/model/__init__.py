"""The network: pure tensors; no files, no devices, no command line."""
