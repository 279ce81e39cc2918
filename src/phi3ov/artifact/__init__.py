"""The exported folder: its manifest, the contents of its IR, download and publishing.

`exporter` creates such a folder, `loading` opens it.
"""
