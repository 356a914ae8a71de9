"""How patch tokens become bytes, and the way back, on any device.

codec.py says which codecs there are; uniform.py holds int8 and int4, variable.py the codes of
varying length, over steps.py and rans.py; rotation.py turns tokens into another basis.
"""
