//! Keeps the library where it is once fio has loaded it: fio unloads an engine while its threads still have values of the
//! library's to drop.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
