"""Stable deep MRI reconstruction using generative priors: the paper's tables and figures.

M. Zach, F. Knoll, T. Pock, Stable deep MRI reconstruction using generative priors, 2023.
"""
