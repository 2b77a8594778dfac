"""Solvers of the flow dx/dsigma = v(x, sigma), a file each, compiled to `Mix` instructions.

With flow prediction the clean estimate is x0 = x - sigma * v, and every update is linear in the latents and in the
clean estimates of the last steps, with coefficients that depend on the sigmas alone. They are computed in float64.
"""
