# client/README.md quotes client/examples/first_call.cc: run as cmake -DROOT=… -P readme_test.cmake
file(READ ${ROOT}/client/README.md readme)
file(READ ${ROOT}/client/examples/first_call.cc example)
string(FIND "${example}" "using namespace" begin)
string(SUBSTRING "${example}" ${begin} -1 quoted)
string(STRIP "${quoted}" quoted)
string(FIND "${readme}" "${quoted}" found)
if(found EQUAL -1)
  message(FATAL_ERROR "client/README.md does not quote client/examples/first_call.cc as it is now: copy the part "
                      "from `using namespace` on into its C++ block")
endif()
