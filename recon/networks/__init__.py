"""Neural networks in Keras 3 on TensorFlow: architectures, losses, and weights by reference."""
