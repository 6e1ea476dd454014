"""Pre-training and fine-tuning: data, objectives, optimizers, adapters, and runs that resume."""
