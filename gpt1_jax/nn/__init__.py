"""The parts that the model is made of, and the checks of its arguments."""
