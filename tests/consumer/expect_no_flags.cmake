# A user's flags are the user's: bda's targets carry none.
foreach(target bda::bda bda::checkpoint)
  foreach(property INTERFACE_COMPILE_OPTIONS INTERFACE_LINK_OPTIONS INTERFACE_COMPILE_DEFINITIONS)
    get_target_property(value ${target} ${property})
    if(value)
      message(FATAL_ERROR "${target} has ${property} ${value}")
    endif()
  endforeach()
endforeach()
