"""The tools that work on files alone: no process group, no run, and no torch where none is needed.

``cli`` picks the command; each command has a module with ``add_arguments(parser)`` and ``run(args)``, which returns an
exit code. What a command finds out, and what it shows of that, are apart:

- ``inspect_command``: ``describe``, ``leaf_tree``, ``list_run``, and ``leaf_values``, which needs torch;
- ``verify_command``: ``check_checkpoint``, ``check_file``, ``check_header``, ``damage``;
- ``diff_command``: ``pairing``, ``compare``, ``difference``, ``distance``;
- all of them read other formats through ``ckptrun.formats``.

``output`` is the only one that prints.
"""
