"""QLoRA: fine-tuning a 4-bit model on one card."""
