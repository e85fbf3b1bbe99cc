"""Bad input: every reader of radgaze under a fuzzer. ``make fuzz`` runs them; ``tests/test_fuzz.py`` keeps them alive.

A harness turns any bytes into an input of one reader and reads it. The contract it checks: the input is read, or it is
refused by a :class:`~radgaze.errors.RadgazeError` in one sentence. Anything else that is raised is a fault, and so is a
hang, or memory far above what the input justifies (``__main__.py`` watches both).
"""
