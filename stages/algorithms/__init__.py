"""Pure maths of RLHF: tensors in, tensors out; torch, jaxtyping and the standard library only."""
