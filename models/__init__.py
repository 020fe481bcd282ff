"""Networks with their simulators, training, evaluation, cards and weights. Imports torch and numpy, never the node."""
