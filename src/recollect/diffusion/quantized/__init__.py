"""Quantized denoisers, and what is cached together with quantization (CacheQuant, Q&C)."""
