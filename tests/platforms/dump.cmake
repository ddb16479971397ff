# SPDX-License-Identifier: MIT
# The files that `qwen3moe dump` writes are the same bytes everywhere: dumps three models in three
# dtypes and compares the files' sha256 with golden/bits/files.txt.
#
#   cmake -DCOMMAND=... -DMAKER=... -DGOLDEN=... -DWHERE=... [-DRUNNER=...] [-DWRITE=ON]
#         -P dump.cmake
#
# COMMAND  the qwen3moe command, RUNNER what it is started by (an emulator; a list)
# MAKER    test_bits of this machine, which writes the folders of the models that GOLDEN has no
#          weights of
# WHERE    a folder to work in; WRITE writes golden/bits/files.txt instead of comparing
cmake_minimum_required(VERSION 3.16)

file(REMOVE_RECURSE ${WHERE})
foreach(model bias sparse-step)
    file(MAKE_DIRECTORY ${WHERE}/${model})
endforeach()
execute_process(COMMAND ${MAKER} --folders ${GOLDEN} ${WHERE} RESULT_VARIABLE status OUTPUT_QUIET)
if(NOT status EQUAL 0)
    message(FATAL_ERROR "dump: the model folders were not written (${status})")
endif()

set(found "")
foreach(model tiny bias sparse-step)
    set(folder ${WHERE}/${model})
    if(model STREQUAL "tiny")
        set(folder ${GOLDEN}/tiny)
    endif()
    foreach(dtype float32 bfloat16 float16)
        set(file ${WHERE}/${model}-${dtype}.safetensors)
        execute_process(COMMAND ${RUNNER} ${COMMAND} dump ${folder} -o ${file} --dtype ${dtype}
            --tokens 40,7,33,2,19,19,0,5,28,11,3 --start 4000 --chunk 4
            RESULT_VARIABLE status OUTPUT_QUIET ERROR_VARIABLE text)
        if(NOT status EQUAL 0)
            message(FATAL_ERROR "dump: ${model} ${dtype}: exit status ${status}: ${text}")
        endif()
        file(SHA256 ${file} hash)
        string(APPEND found "${model} ${dtype} ${hash}\n")
    endforeach()
endforeach()

if(WRITE)
    file(WRITE ${GOLDEN}/bits/files.txt "${found}")
endif()
file(READ ${GOLDEN}/bits/files.txt wanted)
if(NOT found STREQUAL wanted)
    message(FATAL_ERROR "dump: golden/bits/files.txt: found\n${found}expected\n${wanted}"
        "A changed byte needs a line in CHANGELOG.md that says why")
endif()
string(SHA256 hash "${found}")
file(REMOVE_RECURSE ${WHERE})
message(STATUS "files ${hash}")
