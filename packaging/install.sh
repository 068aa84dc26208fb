#!/bin/sh
# Installs epiniod: the program, its service where there is systemd, completions, the manual page.
#
#   sh install.sh                      from the unpacked tarball that this file is in
#   sh install.sh epiniod-….tar.gz     from a tarball; SHA256SUMS has to be beside it
#   sh install.sh https://…            from a folder of a web server that has tarball and SHA256SUMS (or EPINIOD_URL)
#   sh install.sh --uninstall          takes all of that away, and leaves the data; --purge takes that as well
#
# A second time it replaces the program, and applications run on meanwhile. Variables: PREFIX (/usr/local), DESTDIR (another
# root; nothing is started then), EPINIOD_VERSION (where a folder has several).
set -eu

PREFIX=${PREFIX:-/usr/local}
DESTDIR=${DESTDIR:-}
program=$DESTDIR$PREFIX/bin/epiniod
unit=$DESTDIR/etc/systemd/system/epiniod.service
settings=$DESTDIR/etc/default/epiniod
data=$DESTDIR/var/lib/epiniod
work=

say() { echo "epiniod: $*" >&2; }
fail() {
    say "$*"
    exit 1
}

main() {
    action=install purge=no source=${EPINIOD_URL:-}
    for argument in "$@"; do
        case $argument in
        --uninstall) action=uninstall ;;
        --purge) action=uninstall purge=yes ;;
        -h | --help) usage && exit 0 ;;
        -*) usage && exit 2 ;;
        *) source=$argument ;;
        esac
    done
    [ "$(uname -s)" = Linux ] || fail "it runs on Linux only"
    if [ -z "$DESTDIR" ] && [ "$(id -u)" != 0 ]; then
        fail "please run this as root (sudo sh install.sh …), or name a folder of yours: DESTDIR=… PREFIX=…"
    fi
    umask 022
    if [ "$action" = uninstall ]; then uninstall; else install; fi
}

usage() {
    say "install.sh [TARBALL | URL]; install.sh --uninstall [--purge]"
}

install() {
    if [ -e "$DESTDIR/usr/lib/systemd/system/epiniod.service" ]; then
        fail "the package epiniod is installed here: bring that up to date with apt, or remove it first"
    fi
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    find_files
    "$files/epiniod" --version >"$work/version" 2>&1 \
        || fail "the program does not start on this machine: $(head -n 1 "$work/version")"
    put 755 "$files/epiniod" "$program"
    if [ ! -e "$settings" ]; then put 644 "$files/epiniod.default" "$settings"; fi
    put 644 "$files/completions/epiniod.bash" "$DESTDIR$PREFIX/share/bash-completion/completions/epiniod"
    put 644 "$files/completions/_epiniod" "$DESTDIR$PREFIX/share/zsh/site-functions/_epiniod"
    put 644 "$files/completions/epiniod.fish" "$DESTDIR$PREFIX/share/fish/vendor_completions.d/epiniod.fish"
    put 644 "$files/epiniod.1" "$DESTDIR$PREFIX/share/man/man1/epiniod.1"
    say "installed $(cat "$work/version") as $PREFIX/bin/epiniod"
    if has_systemd; then start_service; else say "there is no systemd: start the daemon with 'epiniod serve'"; fi
}

start_service() {
    sed "s|^ExecStart=/usr/bin/|ExecStart=$PREFIX/bin/|" "$files/epiniod.service" >"$work/unit"
    put 644 "$work/unit" "$unit"
    [ -z "$DESTDIR" ] || return 0
    systemctl daemon-reload
    systemctl --quiet enable epiniod.service
    systemctl restart epiniod.service || fail "the service does not start; 'journalctl -u epiniod' says why"
    say "the service runs; settings are in /etc/default/epiniod, the credential is in /var/lib/epiniod/client.yaml"
}

# Sets $files to a folder with what is in the tarball.
find_files() {
    own=$(dirname "$0")
    case $source in
    http://* | https://*) fetch_tarball ;;
    '')
        if [ "$(basename "$0")" = install.sh ] && [ -x "$own/epiniod" ]; then
            files=$own
            return 0
        fi
        fail "please name a tarball, or where it is: sh install.sh URL"
        ;;
    *)
        [ -f "$source" ] || fail "there is no file '$source'"
        tarball=$source
        name=$(basename "$tarball")
        sums=$(dirname "$tarball")/SHA256SUMS
        [ -f "$sums" ] || fail "there is no SHA256SUMS beside $tarball: nobody could tell whether it is whole"
        ;;
    esac
    check
    mkdir "$work/files"
    tar -xzf "$tarball" -C "$work/files" --strip-components=1 || fail "$name cannot be unpacked"
    files=$work/files
}

fetch_tarball() {
    machine=$(uname -m)
    case $machine in
    x86_64 | amd64) arch=x86_64 ;;
    aarch64 | arm64) arch=aarch64 ;;
    *) fail "there is no epiniod for '$machine', only for x86_64 and aarch64" ;;
    esac
    sums=$work/SHA256SUMS
    fetch SHA256SUMS "$sums"
    name=$(awk -v begin="epiniod-${EPINIOD_VERSION:-}" -v end="-$arch.tar.gz" '
        index($2, begin) == 1 && substr($2, length($2) - length(end) + 1) == end { print $2; exit }' "$sums")
    [ -n "$name" ] || fail "$source has no epiniod ${EPINIOD_VERSION:-} for $arch"
    tarball=$work/tarball
    fetch "$name" "$tarball"
}

fetch() {
    url=${source%/}/$1
    if command -v curl >/dev/null; then
        curl -fsSL --retry 2 -o "$2" "$url" || fail "$url cannot be had"
    elif command -v wget >/dev/null; then
        wget -q -O "$2" "$url" || fail "$url cannot be had"
    else
        fail "please install curl or wget"
    fi
}

check() {
    expected=$(awk -v name="$name" '$2 == name || $2 == "*" name { print $1; exit }' "$sums")
    [ -n "$expected" ] || fail "SHA256SUMS does not name $name"
    found=$(sha256sum "$tarball" | cut -d ' ' -f 1)
    [ "$found" = "$expected" ] \
        || fail "$name is not what was released: its SHA-256 is $found, and has to be $expected; nothing was installed"
}

# Beside and renamed: a program that runs cannot be written to, and who looks sees a whole file.
put() {
    mkdir -p "$(dirname "$3")"
    cp "$2" "$3.new"
    chmod "$1" "$3.new"
    mv -f "$3.new" "$3"
}

# Where no daemon runs that could stop applications, their monitors do: TERM ends the program, then the monitor; USR1 kills it.
end_monitors() {
    for signal in TERM 0 0 0 0 0 0 0 0 0 0 USR1 0; do
        found=no
        for process in /proc/[0-9]*; do
            case $(readlink "$process/exe" || true) in
            "$1/run/monitor-"*) kill -s "$signal" "${process#/proc/}" && found=yes ;;
            esac
        done
        if [ "$found" = no ]; then return 0; fi
        sleep 1
    done
}

has_systemd() { [ -d "$DESTDIR/run/systemd/system" ]; }

uninstall() {
    if [ -z "$DESTDIR" ] && [ -x "$program" ]; then
        # Without the program applications could not be started again.
        (
            set -a
            # shellcheck source=/dev/null
            [ ! -r "$settings" ] || . "$settings"
            "$program" stop --all || end_monitors "${EPINIOD_DATA_DIR:-$data}"
        ) >/dev/null 2>&1 || true
    fi
    if [ -z "$DESTDIR" ] && [ -e "$unit" ] && has_systemd; then
        systemctl --quiet disable --now epiniod.service || true
    fi
    rm -f "$program" "$unit" \
        "$DESTDIR$PREFIX/share/bash-completion/completions/epiniod" \
        "$DESTDIR$PREFIX/share/zsh/site-functions/_epiniod" \
        "$DESTDIR$PREFIX/share/fish/vendor_completions.d/epiniod.fish" \
        "$DESTDIR$PREFIX/share/man/man1/epiniod.1"
    if [ -z "$DESTDIR" ] && has_systemd; then systemctl daemon-reload; fi
    if [ "$purge" = yes ]; then
        rm -rf "$settings" "$data" || say "$data could not be removed whole"
    elif [ -e "$settings" ] && grep -qv '^[[:space:]]*\(#\|$\)' "$settings"; then
        say "$settings has settings of yours, and stays"
    else
        rm -f "$settings"
    fi
    say "uninstalled"
    [ ! -e "$data" ] || say "the data stays in $data; --purge takes it away as well"
}

# Last, so that half of this file does nothing.
main "$@"
