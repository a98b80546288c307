//! The kernel that copies pages, from its source to the text that the driver takes: by NVIDIA's
//! runtime compiler, which needs neither a GPU nor a toolkit.

use crate::shell::{Shell, run};
use crate::wheels::Wheel;

const COMPILER: Wheel = Wheel {
    name: "nvrtc",
    version: "12.4.127",
    requirements: "nvidia-cuda-nvrtc-cu12==12.4.127 \
        --hash=sha256:a178759ebb095827bd30ef56598ec182b85547f1508941a3d560eb7ea1fbf338\n",
    import: "nvidia.cuda_nvrtc",
    libraries: &[],
};

/// Makes `pages.ptx` anew.
pub fn compile() -> Result<(), String> {
    let shell = Shell::new()?;
    COMPILER.install(&shell)?;
    let mut command = shell.command(COMPILER.python(&shell));
    let folder = "reactors/src/cuda";
    run(command
        .arg("xtask/src/ptx.py")
        .args([format!("{folder}/pages.cu"), format!("{folder}/pages.ptx")]))
}
