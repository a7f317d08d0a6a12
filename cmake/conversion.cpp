#include "conversion.hpp"

template BDA_PROJECT_CONVERT;
template BDA_PROJECT_VERIFY(double);
template BDA_PROJECT_VERIFY(float);
