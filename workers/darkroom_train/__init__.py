"""Training: from captioned pictures to a Stable Diffusion of one's own, one stage after the other.

Takes its noise schedule, parameterization and sampling from darkroom_engine, so that training and inference agree.
"""
