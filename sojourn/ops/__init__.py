"""Pure JAX numerics: recursions, transforms and samplers that know nothing of NumPyro."""
