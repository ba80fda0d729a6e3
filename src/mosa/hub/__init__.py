"""What comes in a checkpoint's folder, read for targets and chat models alike.

Folders and hub ids (folders.py), tensors (weights.py), tokenizers and chat templates (text.py) and
LoRA adapters (adapters.py). Nothing of theirs is unpickled or trusted; what may never come back
runs in a process of its own (bounded.py). Each fault is a UserError that names the file.
"""
