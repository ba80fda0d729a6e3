from mosa.align.output import versions, fingerprint
def content_hash(model): return fingerprint(model)
