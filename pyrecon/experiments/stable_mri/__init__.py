"""Stable MRI with a generative prior: what its paper and our own goals ask to be shown.

Zach, Knoll and Pock, Stable deep MRI reconstruction using generative priors, IEEE Trans Med Imaging 42:3817 (2023).
"""
