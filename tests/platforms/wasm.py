# SPDX-License-Identifier: MIT
# Runs a wasm32-wasi program: python3 wasm.py READ WRITE PROGRAM [argument ...]
# READ and WRITE are the two folders it sees, under their own paths. Needs pip: wasmtime.
import sys

import wasmtime

read, write, program = sys.argv[1:4]
engine = wasmtime.Engine()
linker = wasmtime.Linker(engine)
linker.define_wasi()
wasi = wasmtime.WasiConfig()
wasi.argv = sys.argv[3:]
wasi.preopen_dir(read, read)
wasi.preopen_dir(write, write)
wasi.inherit_stdout()
wasi.inherit_stderr()
store = wasmtime.Store(engine)
store.set_wasi(wasi)
instance = linker.instantiate(store, wasmtime.Module.from_file(engine, program))
try:
    instance.exports(store)["_start"](store)
except wasmtime.ExitTrap as end:
    sys.stdout.flush()
    sys.exit(end.code)
