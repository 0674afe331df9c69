"""Bugs of the wild, as classes that a job names: its model, its optimizer ..., or a component that patches ckptrun.

Every rank of every start imports them anew, so a bug is there whenever the job is, as it would be in the wild. None of
them is active in a way that only a test could make.
"""
