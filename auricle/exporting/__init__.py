"""Encoders for other people's tools: folders of Hugging Face's layout, and ONNX graphs."""
