"""Names of brand icons, which are left out: logos of companies, products, projects, licences and franchises.

A pattern is a name of the font without its style ("slack"), in which * stands for anything ("google*").
"""

from __future__ import annotations

import re
from fnmatch import translate

_MATERIAL_DESIGN = """
android* angular angularjs ansible apache-* apple apple-* arch artstation atlassian aws babel bash bitbucket bootstrap
bulma centos codepen cordova cryengine death-star* deathly-* debian deviantart dev-to digital-ocean disqus dlna docker
dolby dot-net dropbox drupal electron-framework ember emby eslint et ev-plug-tesla evernote facebook* fedora firebase
firefox folder-google-drive font-awesome form freebsd gatsby gentoo git github gitlab gmail gnome gog goodreads google*
graphql hololens home-assistant hubspot hulu humble-bundle instagram iobroker ipod jabber jira jquery jsfiddle
kickstarter klingon kodi kubernetes language-* laravel lastpass linkedin linux* lumx manjaro mapbox mastodon
material-design material-ui microsoft* minecraft nativescript netflix nintendo-* nix nodejs npm nuke nuxt oci
odnoklassniki one-up onepassword open-source-initiative openid opera origin pac-man pandora patreon pinterest plex
pocket pokeball pokemon-go polaroid polymer powershell qi qqchat quora raspberry-pi react reddit redhat rollupjs
salesforce sass semantic-web simple-icons sina-weibo skype* slack snapchat solid sony-* soundcloud space-invaders
spotify stack-exchange stack-overflow stackpath steam svg symfony tailwind teamviewer terraform trello triforce twitch
twitter ubisoft ubuntu umbraco unity unreal vimeo vlc vuejs vuetify waze webpack webrtc wechat whatsapp wikipedia
wordpress xamarin xmpp yahoo youtube* z-wave zend zigbee
"""
_REMIX = """
airplay alipay amazon android angularjs app-store apple baidu behance bilibili centos china-railway chrome codepen
coreos creative-commons* css3 dingding discord disqus douban dribbble drive dropbox edge evernote facebook* file-hwp
finder firefox flutter gatsby github gitlab google* honor-of-kings html5 ie instagram invision kakao-talk keynote line
linkedin* mac macbook markdown mastercard mastodon medium messenger mickey* microsoft mini-program netease-cloud-music
netflix npmjs open-source opera pantone patreon paypal pinterest pixelfed playstation polaroid* product-hunt qq reactjs
reddit remixicon safari skype slack snapchat soundcloud spotify stack-overflow stackshare steam switch taobao telegram
trello tumblr twitch twitter ubuntu unsplash vimeo visa vuejs wechat* weibo whatsapp windows xbox xing youtube zcool
zhihu
"""
_FONT_AWESOME = "book-journal-whills font-awesome hand-spock jedi web-awesome notdef"
_CODICONS = """
azure azure-devops code-oss copilot github* gist* hubot jersey logo-github mark-github markdown octoface ruby snake
terminal-bash terminal-cmd terminal-debian terminal-linux terminal-powershell terminal-tmux terminal-ubuntu twitter
vscode vscode-insiders
"""

_PATTERNS = {
    family: re.compile("|".join(map(translate, patterns.split())))
    for family, patterns in {
        "material design": _MATERIAL_DESIGN,
        "phosphor": "*-logo *-logo-*",
        "remix": _REMIX,
        "font awesome": _FONT_AWESOME,
        "codicons": _CODICONS,
    }.items()
}


def is_brand(family: str, name: str) -> bool:
    """Whether a name of a family, without its style, is a brand's."""
    return _PATTERNS[family].match(name) is not None
