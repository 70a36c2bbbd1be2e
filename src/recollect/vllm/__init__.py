"""recollect inside vLLM: a KV connector, an offloading spec and replacement policies, out of tree.

vLLM finds the connector by module path (`recollect.vllm.connector`) or by the name the entry point
registers (`recollect.vllm.plugin`). Nothing of vLLM is patched; one file here for each of its
extension points, and the rest knows only plain data and runs without vLLM.
"""
