#!/bin/sh
# Writes what programs are linked with, as an SPDX 2.3 document: the Debian packages of all their libraries.
#
#   sbom.sh NAME VERSION PROGRAM...
#
# Runs in the image itself, so that it tells what is there: needs only sh, awk, ldd, date and dpkg-query. Dated
# SOURCE_DATE_EPOCH, in seconds, where that is set.
set -eu
name=$1 version=$2
shift 2

libraries=$(for program in "$@"; do ldd "$program"; done | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u)
[ -n "$libraries" ]
# dpkg knows a library by the path that its package has it at, which a merged /usr may show under another name.
packages=$(for library in $libraries; do
  found=$(dpkg-query --search "$library" 2>/dev/null || dpkg-query --search "${library#/usr}" 2>/dev/null ||
    dpkg-query --search "/usr$library")
  echo "$found" | sed 's/: .*//'
done | sort -u)

# shellcheck disable=SC2086  # one package a word
dpkg-query --show --showformat '${Package} ${Version} ${Architecture}\n' $packages |
  awk -v name="$name" -v version="$version" -v created="$(date -u -d "@${SOURCE_DATE_EPOCH:-$(date +%s)}" +%Y-%m-%dT%H:%M:%SZ)" '
    function package(id, name, version, purl) {
      return sprintf("    {\"SPDXID\": \"SPDXRef-%s\", \"name\": \"%s\", \"versionInfo\": \"%s\", " \
        "\"downloadLocation\": \"NOASSERTION\"%s}", id, name, version, purl)
    }
    function relation(type, from, to) {
      return sprintf("    {\"spdxElementId\": \"SPDXRef-%s\", \"relationshipType\": \"%s\", " \
        "\"relatedSpdxElement\": \"SPDXRef-%s\"}", from, type, to)
    }
    BEGIN {
      packages = package("program", name, version, "")
      relations = relation("DESCRIBES", "DOCUMENT", "program")
    }
    {
      id = $1
      gsub(/[^A-Za-z0-9.-]/, "-", id)
      escaped = $2
      gsub(/\+/, "%2B", escaped)
      gsub(/:/, "%3A", escaped)
      gsub(/~/, "%7E", escaped)
      purl = sprintf(", \"externalRefs\": [{\"referenceCategory\": \"PACKAGE-MANAGER\", " \
        "\"referenceType\": \"purl\", \"referenceLocator\": \"pkg:deb/debian/%s@%s?arch=%s\"}]", $1, escaped, $3)
      packages = packages ",\n" package(id, $1, $2, purl)
      relations = relations ",\n" relation("DYNAMIC_LINK", "program", id)
    }
    END {
      printf "{\n  \"spdxVersion\": \"SPDX-2.3\",\n  \"dataLicense\": \"CC0-1.0\",\n"
      printf "  \"SPDXID\": \"SPDXRef-DOCUMENT\",\n  \"name\": \"%s-%s\",\n", name, version
      printf "  \"documentNamespace\": \"urn:%s:%s:%s\",\n", name, version, created
      printf "  \"creationInfo\": {\"created\": \"%s\", \"creators\": [\"Tool: sbom.sh\"]},\n", created
      printf "  \"packages\": [\n%s\n  ],\n  \"relationships\": [\n%s\n  ]\n}\n", packages, relations
    }'
