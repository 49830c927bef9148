{
  description = "What ofborg-async is developed, tested and shown with where there is no apt-get: `nix develop`, then make";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "aarch64-darwin"
        "x86_64-darwin"
      ];
      eachSystem = shell: nixpkgs.lib.genAttrs systems (system: shell nixpkgs.legacyPackages.${system});
    in
    {
      devShells = eachSystem (pkgs: {
        default = pkgs.mkShell {
          packages = [
            pkgs.erlang # erl_call and epmd, beside the broker's own
            pkgs.git
            pkgs.gnumake
            pkgs.nix
            pkgs.openssh
            pkgs.python312
            pkgs.rabbitmq-server
            pkgs.ruff # the one that pip installs needs /lib64, which NixOS has not
          ]
          ++ pkgs.lib.optionals pkgs.stdenv.isLinux [
            pkgs.pkgsStatic.busybox # the shell inside nix's sandbox, which has no libraries
            pkgs.procps
            pkgs.strace
            pkgs.util-linux
          ];
          RUFF = "ruff";
          # for the compiled modules that pip installs
          LD_LIBRARY_PATH = pkgs.lib.optionalString pkgs.stdenv.isLinux (
            pkgs.lib.makeLibraryPath [
              pkgs.stdenv.cc.cc.lib
              pkgs.zlib
            ]
          );
        };
      });
    };
}
