# The CPU addon with node-gyp and no CMake, from the same sources:
#   node-gyp configure build --nodedir=<folder with include/node, e.g. /usr>
# BALORA_ONEDNN_ROOT in the environment names a oneDNN of one's own, as for CMake.
{
  'targets': [{
    'target_name': 'balora',
    'sources': ['<!@(find native -name "*.cc" ! -path "native/platform/*" ! -path "*/x86/*" | sort)',
                'native/platform/cpu.cc', 'native/platform/environment.cc',
                'native/platform/files.cc', 'native/platform/guarded_pages.cc',
                'native/platform/machine_memory.cc', 'native/platform/posix.cc'],
    'include_dirs': ['native', 'node_modules/node-addon-api', '/usr/include/eigen3',
                     '<!@(echo ${BALORA_ONEDNN_ROOT:+$BALORA_ONEDNN_ROOT/include})'],
    'defines': ['NAPI_VERSION=8', 'NAPI_CPP_EXCEPTIONS', 'NODE_ADDON_API_DISABLE_DEPRECATED',
                'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS', 'EIGEN_DONT_PARALLELIZE', 'EIGEN_MPL2_ONLY'],
    'cflags!': ['-fno-exceptions'],
    'cflags_cc!': ['-fno-exceptions', '-fno-rtti', '-std=gnu++17', '-std=gnu++20', '-std=gnu++14'],
    'cflags_cc': ['-std=c++20', '-O3', '-fopenmp', '-fvisibility=hidden', '-fno-math-errno',
                  '-fno-trapping-math', '-Wno-cast-function-type',
                  '-Wno-missing-field-initializers'],
    'ldflags': ['-fopenmp', "-Wl,-rpath,'$$ORIGIN'", '-Wl,--enable-new-dtags'],
    'libraries': ['<!@(echo ${BALORA_ONEDNN_ROOT:+-L$BALORA_ONEDNN_ROOT/lib -Wl,-rpath,$BALORA_ONEDNN_ROOT/lib})',
                  '-ldnnl', '-ldl'],
    'conditions': [['target_arch=="x64"', {
      'sources': ['<!@(find native -path "*/x86/*.cc" | sort)'],
    }], ['OS!="mac"', {
      'sources': ['native/platform/linux.cc'],
      'libraries': ['-Wl,--exclude-libs,libdnnl.a'],
    }, {
      'sources': ['native/platform/macos.cc'],
      'xcode_settings': {
        'GCC_ENABLE_CPP_EXCEPTIONS': 'YES',
        'GCC_ENABLE_CPP_RTTI': 'YES',
        'CLANG_CXX_LANGUAGE_STANDARD': 'c++20',
        'OTHER_CPLUSPLUSFLAGS': ['-Xpreprocessor', '-fopenmp'],
      },
    }]],
  }],
}
