"""One table of cases for all operators, and a test file for each backend that runs it.

A case is an operator with the shapes of its arguments (``cases.py``); the table (``table.py``) has groups of them, from one file for
each kind of operator (``*_cases.py``). A new operator, or a new size of a known one, is a line in one of those.
"""
