"""A trained model for other runtimes: ONNX, OpenVINO, torch.export; each compared with PyTorch."""
