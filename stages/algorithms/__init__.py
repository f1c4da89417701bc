"""Pure reinforcement-learning maths: tensors in, tensors out; only torch, jaxtyping and the standard library."""
