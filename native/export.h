// How the functions that Python calls are declared.
#pragma once

#ifdef _WIN32
#define CAFFETOOLS_API extern "C" __declspec(dllexport)
#else
#define CAFFETOOLS_API extern "C" __attribute__((visibility("default")))
#endif
