"""What CodeGen is: configuration, checkpoint, fused weights, tokenizer, hub."""
