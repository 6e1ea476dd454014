"""What a model is trained on: texts, labelled sets, tasks and their batches."""
