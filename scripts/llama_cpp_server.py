"""A llama.cpp server on loopback until it is killed: llama_cpp_server.py MODEL.gguf URL_FILE"""

import os
import signal
import socket
import sys

import xllamacpp

model, url_file = sys.argv[1:]
if os.path.exists(url_file):
    os.remove(url_file)
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]

params = xllamacpp.CommonParams()
params.model.path = model
params.hostnames = ["127.0.0.1"]
params.port = port
params.n_ctx = 2048
params.n_parallel = 2
params.cpuparams.n_threads = 1
params.cpuparams_batch.n_threads = 1
params.warmup = False
server = xllamacpp.Server(params)

with open(url_file + ".new", "w") as file:
    file.write(server.listening_address)
os.rename(url_file + ".new", url_file)
signal.pause()
