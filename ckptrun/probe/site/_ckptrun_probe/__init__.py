"""Listens in a rank of somebody's training job, and writes down what it does.

It lives in the job's interpreter: standard library only until the job itself has imported torch, any Python from 3.9,
any torch from 2.10. It changes nothing that the job computes: no random draw, no collective, no tensor kept alive, no
change of what a function returns, nothing printed. What goes wrong in here is written down, and never reaches the job.
"""
